"""The settings of a run: `params.yaml` as frozen dataclasses, read strictly.

An unknown key, a missing key, a wrong type or an impossible value is a `ConfigError` that names the key, the value
and what would have been right. Standard library and yaml only, so that it imports on a machine that has torch and
little else. Units are in the field names. `conf/` composes the file (Hydra, through DVC); this module only reads it.
"""

import dataclasses
import difflib
import re
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union

import yaml


class ConfigError(ValueError):
    """A setting that cannot be right; the message says which, and what would be."""


def require(holds: bool, message: str) -> None:
    """Raise `ConfigError(message)` unless `holds`."""
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class Audio:
    sample_rate: int
    segment_seconds: float  # every segment has this length; shorter ones are zero-padded, their true length kept

    def __post_init__(self) -> None:
        require(self.sample_rate >= 8000, f"audio.sample_rate is {self.sample_rate}; at least 8000 Hz is needed")
        require(self.segment_seconds > 0, f"audio.segment_seconds is {self.segment_seconds}; it must be positive")

    @property
    def segment_samples(self) -> int:
        return round(self.sample_rate * self.segment_seconds)


@dataclass(frozen=True)
class Source:
    """One entry of `collect.fetch.sources`. `kind` names a function of `siren.collect.sources.SOURCES`."""

    kind: str
    options: dict[str, Any]  # checked by the source itself, which owns their meaning


@dataclass(frozen=True)
class Download:
    """Limits of everything that a source gets over the network."""

    concurrency: int  # files at once
    attempts: int  # before a file is quarantined
    backoff_seconds: float  # pause after the first failure, doubled after each further one
    max_wait_seconds: float  # longest pause; a server that asks for a longer one is left for another run
    stall_seconds: float  # a connection silent for so long is given up
    max_bytes_per_second: int | None  # of all together; null for no limit

    def __post_init__(self) -> None:
        for name in ("concurrency", "attempts"):
            value = getattr(self, name)
            require(value >= 1, f"collect.fetch.download.{name} is {value}; at least 1 is needed")
        for name in ("backoff_seconds", "max_wait_seconds"):
            value = getattr(self, name)
            require(value >= 0, f"collect.fetch.download.{name} is {value}; 0 or more")
        for name in ("stall_seconds", "max_bytes_per_second"):
            value = getattr(self, name)
            require(value is None or value > 0, f"collect.fetch.download.{name} is {value}; it must be positive")


@dataclass(frozen=True)
class Fetch:
    sources: tuple[Source, ...]
    download: Download

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "collect.fetch.sources is empty; name at least one source")


@dataclass(frozen=True)
class Segment:
    min_seconds: float  # anything shorter is quarantined
    min_snr_db: float  # acoustic activity gate (paper, appendix A)
    silence_dbfs: float  # a clip whose peak is below this is silent
    max_bit_errors: float | None = None  # fingerprints closer than this to a held-out one are left out; null for all

    def __post_init__(self) -> None:
        require(
            self.max_bit_errors is None or 0 < self.max_bit_errors < 0.5,
            f"collect.segment.max_bit_errors is {self.max_bit_errors}; in (0, 0.5): strangers differ in half of them",
        )
        require(self.min_seconds > 0, f"collect.segment.min_seconds is {self.min_seconds}; it must be positive")


@dataclass(frozen=True)
class Collect:
    fetch: Fetch
    segment: Segment
    licences: tuple[str, ...] | None  # only clips under these, e.g. [CC0, CC-BY] for commercial use; null keeps all

    def __post_init__(self) -> None:
        require(self.licences != (), "collect.licences is empty; name at least one licence, or null to keep all")


@dataclass(frozen=True)
class Endpoint:
    """An address that speaks OpenAI's chat protocol, such as vLLM's. Its key is read from SIREN_ENDPOINT_KEY."""

    url: str  # up to /v1
    limits: Download  # concurrency: questions at once

    def __post_init__(self) -> None:
        right = self.url.startswith(("http://", "https://"))
        require(right, f"endpoint.url is {self.url!r}; an address such as http://localhost:8000/v1 is needed")


@dataclass(frozen=True)
class LanguageModel:
    """A published language model that describes or rewords, run here or, with `endpoint`, somewhere else."""

    model: str  # a folder or a hub name; at an endpoint its name there
    revision: str | None  # of the hub, a commit or a tag; null for the newest
    licence: str | None  # of the weights, for the record
    prompt: str  # to rewrite: with {caption} in the place of the caption
    candidates: int  # answers to each prompt
    max_new_tokens: int
    temperature: float  # 0 for the likeliest answer
    top_p: float
    batch_size: int  # answers at once
    dtype: Literal["float32", "bfloat16", "float16"]
    device: str | None  # null for the machine's accelerator, where it has one
    endpoint: Endpoint | None

    def __post_init__(self) -> None:
        for name in ("candidates", "max_new_tokens", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; at least 1 is needed")
        require(self.temperature >= 0, f"temperature is {self.temperature}; 0 or more")
        require(0 < self.top_p <= 1, f"top_p is {self.top_p}; it lies in (0, 1]")
        require(self.prompt.strip() != "", "prompt is empty; say what the model shall do")
        require(
            self.temperature > 0 or self.candidates == 1,
            f"candidates is {self.candidates} with temperature 0: they would all be the same; set one of them to 1",
        )


AUTOCAP = "models/autocap"


@dataclass(frozen=True)
class BeamSearch:
    """How the trained captioner is asked."""

    model: str  # the folder of the network; the pipeline's is AUTOCAP
    beams: int
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("beams", "batch_size"):
            require(getattr(self, name) >= 1, f"filter.caption.autocap.{name} is {getattr(self, name)}; at least 1")


@dataclass(frozen=True)
class Caption:
    captioner: str  # for segments without a human caption; a key of siren.filter.caption.captioners.CAPTIONERS
    describe: LanguageModel | None  # what `qwen2-audio` runs
    rewrite: LanguageModel | None  # refines what a model wrote, besides the rules; null for rules alone
    autocap: BeamSearch | None = None  # what `autocap` runs

    def __post_init__(self) -> None:
        model = self.rewrite
        if model is not None:
            right = "{caption}" in model.prompt and model.candidates == 1
            require(right, "filter.caption.rewrite needs a prompt that holds {caption}, and candidates: 1")


@dataclass(frozen=True)
class Score:
    crop_seconds: float
    crop_step_seconds: float
    batch_size: int
    choose: Literal["drawn", "best"]  # of a train segment's candidates, the drawn caption or that of the highest score

    def __post_init__(self) -> None:
        require(self.crop_seconds > 0, f"filter.score.crop_seconds is {self.crop_seconds}; it must be positive")
        require(
            self.crop_step_seconds > 0, f"filter.score.crop_step_seconds is {self.crop_step_seconds}; must be positive"
        )


@dataclass(frozen=True)
class Select:
    min_score: float  # tau: CLAP cosine below which a pair is left out of the stage-1 corpus
    min_crop_score: float  # crops below it are never trained on
    max_pairs: int | None  # stage-1 corpus size; null keeps all
    rl_prompts: int  # the top ones by score
    reserve_rl: bool  # they are left out of stage 1, as in the paper; else they are the top of its corpus
    val_pairs: int
    test_pairs: int | None  # null keeps all
    drop_words: tuple[str, ...] = ()  # train pairs whose caption has one are left out: whole words, plurals too
    min_seconds: float = 0.0  # train pairs of less true sound, without padding, are left out

    def __post_init__(self) -> None:
        for name in ("min_score", "min_crop_score"):
            value = getattr(self, name)
            require(-1 <= value <= 1, f"filter.select.{name} is {value}; a cosine lies in [-1, 1]")
        wrong = [word for word in self.drop_words if not re.fullmatch(r"[^\W_]+([ '-][^\W_]+)*", word)]
        require(not wrong, f"filter.select.drop_words has {wrong[:1]}; each is a word or words with one space between")
        require(self.min_seconds >= 0, f"filter.select.min_seconds is {self.min_seconds}; 0 or more")
        require(self.rl_prompts >= 0, f"filter.select.rl_prompts is {self.rl_prompts}; 0 or more")
        _counts("filter.select.", self, "val_pairs", "max_pairs", "test_pairs")


@dataclass(frozen=True)
class Validate:
    max_quarantined: float  # share of fetched clips; above it the gate fails


@dataclass(frozen=True)
class Filter:
    caption: Caption
    score: Score
    select: Select
    validate: Validate


@dataclass(frozen=True)
class Training:
    """How one network is trained: shared by the frozen neighbours, stage 1 and nothing else."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    final_lr_ratio: float
    weight_decay: float
    clip_norm: float
    log_every: int
    checkpoint_every: int

    def __post_init__(self) -> None:
        require(self.steps > 0, f"steps is {self.steps}; at least 1 is needed")
        require(self.batch_size > 0, f"batch_size is {self.batch_size}; at least 1 is needed")
        require(self.learning_rate > 0, f"learning_rate is {self.learning_rate}; it must be positive")
        require(0 <= self.warmup_steps < self.steps, f"warmup_steps is {self.warmup_steps}; below steps={self.steps}")
        require(0 <= self.final_lr_ratio <= 1, f"final_lr_ratio is {self.final_lr_ratio}; it lies in [0, 1]")
        require(self.weight_decay >= 0, f"weight_decay is {self.weight_decay}; 0 or more")
        require(self.clip_norm > 0, f"clip_norm is {self.clip_norm}; it must be positive")
        _counts("", self, "log_every", "checkpoint_every")


@dataclass(frozen=True)
class Network:
    """A frozen neighbour. With `weights` (a folder or a hub name) it is loaded; with null it is trained here."""

    backend: str
    weights: str | None
    architecture: dict[str, Any]  # passed to the network's own config, which checks it
    training: Training | None

    def __post_init__(self) -> None:
        require(
            self.weights is not None or self.training is not None,
            "a network needs either `weights` to load or `training` to be trained with",
        )


@dataclass(frozen=True)
class Judge:
    """The evaluating networks: PANNs Cnn14 (FD, KL, IS, event accuracy) and VGGish (FAD)."""

    panns: Network
    vggish: Network


@dataclass(frozen=True)
class AutoCap:
    """The captioner of sound and metadata (arXiv 2406.19388). With `weights` it is loaded; with null trained here."""

    weights: str | None  # a folder of ours, or the authors' checkpoint
    clap: str | None  # of its embedding of the clip one token is made; where it is trained here, the tower is its, too
    clap_token: bool  # whether there is such a token
    bart: str | None  # a published language model to start from, a folder or a hub name; null for one from nothing
    architecture: dict[str, Any]
    language: Training | None  # BART alone on captions, for one from nothing; null where it can write already
    listening: Training | None  # BART is kept as it is (the paper's first stage)
    finetuning: Training | None  # BART moves, too (the second)
    label_smoothing: float
    metadata_dropout: float  # share of clips that a field is missing from, for each field
    augment_share: float  # share of clips that are heard louder, softer, later or over noise

    def __post_init__(self) -> None:
        for name in ("label_smoothing", "metadata_dropout", "augment_share"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"networks.autocap.{name} is {value}; it lies in [0, 1]")
        require(
            self.weights is not None or self.finetuning is not None,
            "networks.autocap needs either `weights` to load, or `finetuning` and the stages before it",
        )
        require(
            self.weights is not None or self.bart is not None or self.language is not None,
            "networks.autocap is trained from nothing: give `language`, or a `bart` to start from",
        )
        require(
            self.weights is not None or self.clap is not None,
            "networks.autocap.clap is needed to train one: a CLAP with an HTS-AT, whose tower it hears with",
        )


@dataclass(frozen=True)
class Networks:
    codec: Network
    clap: Network
    imagebind: Network
    judge: Judge
    autocap: AutoCap | None = None  # null where no segment needs it


@dataclass(frozen=True)
class Tokenize:
    batch_size: int
    shard_rows: int


@dataclass(frozen=True)
class Encode:
    tokenize: Tokenize


@dataclass(frozen=True)
class Model:
    """M isolated transformers over the codec's codebooks (paper section 4.1). Widths the codec fixes are not here."""

    transformers: tuple[int, ...]  # 0 .. M-1, the order in which the pipeline trains them
    dim: int
    num_heads: int
    num_kv_heads: int
    main_layers: int
    decoder_layers: int
    max_frames: int
    max_text: int
    ffn_multiple_of: int
    norm_eps: float
    dropout: float
    init_std: float
    normalise_codes: bool  # scale each codebook's latents to RMS 1: needed by small codecs, off for published ones
    residual_start: Literal["prompt", "learned"]
    ffn_multiplier: float | None = None  # of the width of SwiGLU; set by some published checkpoints, else not needed
    # The arms of the paper's tables (`siren.model.arms`). Models saved before these keys existed are the default.
    residual_condition: Literal["accumulated", "previous", "none"] = "accumulated"
    codebook_pattern: Literal["parallel", "delay"] = "parallel"

    def __post_init__(self) -> None:
        right = tuple(range(len(self.transformers)))
        require(
            len(right) > 0 and self.transformers == right,
            f"model.transformers is {list(self.transformers)}; it must count 0, 1, ... up to M-1",
        )
        _counts("model.", self, "dim", "num_heads", "num_kv_heads", "max_frames", "max_text")
        require(self.dim % self.num_heads == 0, f"model.dim {self.dim} is not a multiple of num_heads {self.num_heads}")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        require(self.dim % 2 == 0, f"model.dim is {self.dim}; sinusoidal positions need an even width")
        require(0 <= self.dropout < 1, f"model.dropout is {self.dropout}; it lies in [0, 1)")
        require(self.main_layers >= 1, f"model.main_layers is {self.main_layers}; at least 1 is needed")
        unconditioned = self.residual_condition == "none"
        require(
            (self.decoder_layers == 0) == unconditioned and self.decoder_layers >= 0,
            f"model.decoder_layers is {self.decoder_layers} with residual_condition {self.residual_condition!r}; "
            + ("without a condition there is no residual decoder: 0" if unconditioned else "at least 1 is needed"),
        )
        require(
            unconditioned or self.codebook_pattern == "parallel",
            f"model.codebook_pattern is {self.codebook_pattern!r} with residual_condition {self.residual_condition!r}; "
            "delayed codes of one step belong to different frames, so the condition has to be 'none'",
        )


@dataclass(frozen=True)
class Stage1:
    training: Training
    text_dropout: float  # share of batches trained without text, for guidance at sampling time
    similarity_weight: float  # lambda of L_rr on the batches without text (arXiv 2309.08773); 0 for none
    similarity_pooling: Literal["max", "average"]
    history_dropout: float  # share of clips whose past is blank from a random frame on, so that the text is heeded
    shuffle_captions: bool  # the control: every clip is trained with another clip's caption
    shuffle_shards: int  # so many shards are shuffled together; more mix better, fewer read the disk in order
    precision: Literal["fp32", "bf16"]  # bf16: autocast, weights and moments in fp32; for GPUs, slow on most CPUs
    compile: bool
    accumulate: int  # parts that a batch is split into, one after the other, where it does not fit into memory
    ema: float | None  # decay of averaged weights, which are then validated and saved; null for none
    keep_checkpoints: int
    validate_every: int

    def __post_init__(self) -> None:
        for name in ("shuffle_shards", "accumulate", "keep_checkpoints", "validate_every"):
            value = getattr(self, name)
            require(value >= 1, f"train.stage1.{name} is {value}; at least 1 is needed")
        require(self.ema is None or 0 < self.ema < 1, f"train.stage1.ema is {self.ema}; in (0, 1), or null for none")
        require(self.similarity_weight >= 0, f"train.stage1.similarity_weight is {self.similarity_weight}; 0 or more")
        require(
            not self.similarity_weight or self.text_dropout > 0,
            f"train.stage1.similarity_weight is {self.similarity_weight} with text_dropout 0: it applies to batches "
            "without text only; set text_dropout (0.1 in the paper), or the weight to 0",
        )
        size, parts = self.training.batch_size, self.accumulate
        require(
            size % parts == 0,
            f"train.stage1.accumulate is {parts}; it must divide training.batch_size, which is {size}",
        )
        for name in ("text_dropout", "history_dropout"):
            value = getattr(self, name)
            require(0 <= value < 1, f"train.stage1.{name} is {value}; it lies in [0, 1)")


@dataclass(frozen=True)
class Train:
    stage1: Stage1


@dataclass(frozen=True)
class Sampling:
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance: float | None

    def __post_init__(self) -> None:
        require(self.temperature > 0, f"temperature is {self.temperature}; it must be positive")
        require(self.top_k is None or self.top_k >= 1, f"top_k is {self.top_k}; at least 1, or null")
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p is {self.top_p}; it lies in (0, 1], or is null")


@dataclass(frozen=True)
class Rewards:
    """Weights of what alignment rewards; the reward is the weighted sum (`siren.align.rewards`). 0 leaves one out."""

    imagebind: float  # cosine of clip and prompt (Eq. 8)
    clap: float  # the same by the network that conditions the model
    t5: float  # the same against a frozen T5, see align.t5
    agreement: float  # minus the distance between what the first transformer says and what all say

    def __post_init__(self) -> None:
        require(
            any(vars(self).values()), "align.rewards are all 0; give one of them a weight, such as align.rewards.clap=1"
        )


@dataclass(frozen=True)
class Dpo:
    beta: float  # how strongly the policy is held to stage 1
    winner_weight: float  # of the winner's cross entropy per code; 0 for none

    def __post_init__(self) -> None:
        require(self.beta > 0, f"align.dpo.beta is {self.beta}; it must be positive")


@dataclass(frozen=True)
class Watch:
    """Whether alignment is still an improvement, or only a higher reward (`siren.evaluate.watching`)."""

    every: int | None  # steps between looks at held-out prompts; null for none
    prompts: int
    sounds: int  # how many of the clips are kept in MLflow at every look
    max_kl: float | None  # nats per code to stage 1; above it the run ends
    max_fad_rise: float | None  # over stage 1, as a share of it; above it the run ends

    def __post_init__(self) -> None:
        require(self.every is None or self.every >= 1, f"align.watch.every is {self.every}; at least 1, or null")
        require(self.prompts >= 2, f"align.watch.prompts is {self.prompts}; at least 2 are needed")
        require(
            self.max_fad_rise is None or self.every is not None,
            "align.watch.max_fad_rise needs FAD to be measured; set align.watch.every to a number of steps",
        )


@dataclass(frozen=True)
class Align:
    """Anti-causal alignment (paper section 4.2, Eq. 8-11), and what it is compared with."""

    steps: int
    prompts_per_step: int
    group_size: int  # G, rollouts of one prompt
    inner_steps: int  # mu
    learning_rate: float
    warmup_steps: int
    clip_low: float  # epsilon_d
    clip_high: float  # epsilon_u
    min_advantage: float  # gamma
    clip_norm: float
    temperature: float
    top_k: int | None  # of rollouts, and of the policy in the ratio; the paper has neither
    top_p: float | None
    guidance: float | None  # of the policy; best that of sampling, needs stage 1 with text dropped
    direction: Literal["anti-causal", "causal"]  # the first transformers learn, or the last ones (Table 7)
    transformers: int  # how many of them
    method: Literal["rl", "dpo"]
    dpo: Dpo
    rewards: Rewards
    t5: str | None  # a folder or a hub name, for rewards.t5
    advantage_scale: Literal["group", "batch"]  # whose standard deviation rewards are divided by
    kl_weight: float  # of the KL to stage 1 in the loss; the paper has none
    entropy_weight: float  # likewise, of the entropy of the policy
    max_failed: float  # share of a step's rewards that may be no number before the run stops
    ratio_tolerance: float  # of the first ratio; guidance and temperature multiply it as they multiply rounding
    batch_size: int | None  # clips decoded, judged and differentiated at once; null for all of a step
    watch: Watch
    checkpoint_every: int

    def __post_init__(self) -> None:
        require(self.group_size >= 2, f"align.group_size is {self.group_size}; a group needs at least 2 rollouts")
        require(0 < self.clip_low < 1, f"align.clip_low is {self.clip_low}; it lies in (0, 1)")
        require(self.clip_high > 0, f"align.clip_high is {self.clip_high}; it must be positive")
        _counts("align.", self, "steps", "prompts_per_step", "transformers", "inner_steps", "checkpoint_every")
        for name in ("learning_rate", "clip_norm"):
            require(getattr(self, name) > 0, f"align.{name} is {getattr(self, name)}; it must be positive")
        require(self.min_advantage >= 0, f"align.min_advantage is {self.min_advantage}; 0 or more")
        most = (self.group_size - 1) ** 0.5  # of one rollout that is better than all others, which are alike
        require(
            self.advantage_scale == "batch" or self.min_advantage < most,
            f"align.min_advantage is {self.min_advantage}; in a group of {self.group_size} none is {most:.2f} or more, "
            "so nothing would be learned",
        )
        self.sampling  # noqa: B018, its own rules hold before the pipeline begins
        for name in ("kl_weight", "entropy_weight"):
            require(getattr(self, name) >= 0, f"align.{name} is {getattr(self, name)}; 0 or more")
        require(0 <= self.max_failed <= 1, f"align.max_failed is {self.max_failed}; a share lies in [0, 1]")
        require(
            self.batch_size is None or (self.batch_size >= 2 and self.batch_size % 2 == 0),
            f"align.batch_size is {self.batch_size}; even, because DPO takes pairs, or null",
        )
        whole = self.top_k is None and self.top_p is None
        require(
            whole or (self.method == "rl" and not self.kl_weight),
            f"align.top_k is {self.top_k} and align.top_p {self.top_p} with method {self.method!r} and kl_weight "
            f"{self.kl_weight}: a code that is cut off has no likelihood to compare; set both to null",
        )
        require(
            self.method == "rl" or not (self.kl_weight or self.entropy_weight),
            f"align.kl_weight is {self.kl_weight} and entropy_weight {self.entropy_weight} with method 'dpo', whose "
            "beta does that; set both to 0",
        )
        require(
            not self.rewards.t5 or self.t5 is not None,
            f"align.rewards.t5 is {self.rewards.t5} with align.t5 null; name a T5, such as google/flan-t5-base",
        )

    @property
    def sampling(self) -> Sampling:
        """The distribution that rollouts are drawn from."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.guidance)


@dataclass(frozen=True)
class Sample:
    sampling: Sampling
    batch_size: int
    candidates: int  # best of so many by CLAP score, as an arm of its own beside single samples; 1 for no such arm
    report_clips: int  # how many prompts get players in the report

    def __post_init__(self) -> None:
        _counts("evaluate.sample.", self, "batch_size", "candidates")


@dataclass(frozen=True)
class Evaluation:
    batch_size: int
    bootstrap: int  # resamples behind every interval
    is_splits: int

    def __post_init__(self) -> None:
        _counts("evaluate.evaluate.", self, "batch_size", "bootstrap", "is_splits")


@dataclass(frozen=True)
class Register:
    name: str


@dataclass(frozen=True)
class Evaluate:
    sample: Sample
    evaluate: Evaluation
    register: Register


@dataclass(frozen=True)
class Config:
    scale: str
    seed: int
    audio: Audio
    collect: Collect
    filter: Filter
    networks: Networks
    encode: Encode
    model: Model
    train: Train
    align: Align
    evaluate: Evaluate
    arms: dict[str, Any] = field(default_factory=dict)  # sizes of the arms at this scale, for conf/model to refer to

    def __post_init__(self) -> None:
        count = len(self.model.transformers)
        codebooks = self.networks.codec.architecture.get("num_codebooks", count)
        require(
            codebooks % count == 0,
            f"model.transformers are {count}, and networks.codec.architecture.num_codebooks is {codebooks}: "
            f"{codebooks} codebooks cannot be shared out evenly among {count} transformers",
        )
        require(
            self.align.transformers <= count,
            f"align.transformers is {self.align.transformers}; the model has {count} of them",
        )
        asked = self.filter.caption.autocap
        require(
            self.filter.caption.captioner != "autocap"
            or self.networks.autocap is not None
            or (asked is not None and Path(asked.model) != Path(AUTOCAP)),
            "filter.caption.captioner is 'autocap' with networks.autocap null, so there is no network to caption with; "
            "compose the settings with captioner=autocap-demo (trained here) or captioner=autocap (published)",
        )
        guided = {"evaluate.sample.sampling": self.evaluate.sample.sampling, "align": self.align.sampling}
        for where, guidance in ((where, sampling.guidance) for where, sampling in guided.items()):
            require(
                guidance in (None, 1.0) or self.train.stage1.text_dropout > 0,
                f"{where}.guidance is {guidance} with train.stage1.text_dropout 0: a model that was never trained "
                "without text has nothing to be guided away from; set text_dropout, or guidance to null",
            )
        require(self.filter.select.rl_prompts >= 1, "filter.select.rl_prompts is 0; alignment needs prompts")
        crop, whole = self.filter.score.crop_seconds, self.audio.segment_seconds
        require(
            crop <= whole, f"filter.score.crop_seconds is {crop}, more than audio.segment_seconds {whole}; set it lower"
        )


def _counts(where: str, settings: Any, *names: str) -> None:
    """Whole numbers of at least 1; null where a setting may be."""
    for name in names:
        value = getattr(settings, name)
        require(value is None or value >= 1, f"{where}{name} is {value}; at least 1 is needed")


def load(path: str | Path = "params.yaml") -> Config:
    """Read and check a params file. Raises `ConfigError` naming the key, the value and the remedy."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no settings at {path.resolve()}; run from the project's root, where params.yaml lies")
    return parse(Config, yaml.safe_load(path.read_text()), "")


def parse(kind: Any, value: Any, where: str) -> Any:
    """`value` (from yaml) as an instance of the type `kind`; `where` is the key's path, for messages."""
    name = where or "params.yaml"
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        options = typing.get_args(kind)
        if value is None and type(None) in options:
            return None
        return parse(next(o for o in options if o is not type(None)), value, where)
    if origin is tuple:
        require(isinstance(value, list), f"{name} must be a list, not {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(parse(item, v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        require(isinstance(value, dict), f"{name} must be a mapping, not {value!r}")
        return value
    if origin is Literal:
        options = typing.get_args(kind)
        require(value in options, f"{name} is {value!r}; it must be one of {', '.join(map(repr, options))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
    require(right, f"{name} is {value!r}; it must be of type {kind.__name__}")
    return value


def _parse_dataclass(kind: type, value: Any, where: str) -> Any:
    require(isinstance(value, dict), f"{where or 'params.yaml'} must be a mapping, not {value!r}")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            raise ConfigError(f"unknown key {'.'.join(filter(None, [where, str(key)]))!r}; {hint}")
    needed = [f.name for f in fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    for key in needed:
        require(key in value, f"missing key {'.'.join(filter(None, [where, key]))!r}")
    items = {k: parse(hints[k], v, ".".join(filter(None, [where, k]))) for k, v in value.items()}
    try:
        return kind(**items)
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if where in message else f"{where}: {message}") from None


def to_dict(config: Any) -> Any:
    """A dataclass as plain data, for JSON sidecars and for logging."""
    return dataclasses.asdict(config)


def flatten(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` → `{"a.b": 1}`, for trackers that take flat parameters."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
