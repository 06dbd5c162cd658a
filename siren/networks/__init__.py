"""The frozen neighbours of the model, behind small protocols: codec, CLAP, ImageBind and the judges."""
