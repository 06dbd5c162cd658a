"""Shapes in signatures: jaxtyping where it is installed (tests check them), plain tensors where it is not.

The legend, used everywhere: B batch · K codebooks · T frames · S samples · L text length · P text width · D width ·
V codebook size · C code width · H heads · G rollouts of one prompt · M transformers · N codebooks of one transformer.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ImportError:  # a bare GPU machine: annotations then only name the array type

        class _Annotation:
            def __class_getitem__(cls, item: Any) -> Any:
                return item[0]

        Bool = Float = Int = _Annotation

__all__ = ["Bool", "Float", "Int"]
