"""The words that options and config keys allow, each set in one place.

A name to which a user can add (scorers, kinds of variant, rewards, benchmarks) is an entry of a
dict in its own room instead; see `named.py`.
"""

from typing import Literal

# --- offline ---------------------------------------------------------------------------------
FramePlanName = Literal["uniform", "keyframe", "linspace", "fps"]
DecoderName = Literal["auto", "torchcodec", "decord", "pyav"]
FrameCodecName = Literal["jpeg", "raw"]
LongText = Literal["truncate", "chunk-mean"]
"""Treatment of a question that is longer than a scorer's context."""
Query = Literal["question", "question+options"]
"""The part of a question that a scorer reads."""
Engine = Literal["local", "ray"]
ScorerDtype = Literal["float32", "bfloat16", "float16"]

# --- variants, rewards, loss -----------------------------------------------------------------
ScoreTransform = Literal["none", "zscore", "minmax", "logit"]
"""Rescaling of similarity scores before Eq. 4."""
GradingRules = Literal["video_r1", "tolerant"]
Grouping = Literal["joint", "per_variant", "hierarchical", "share"]
StdOver = Literal["group", "batch", "ema_per_type"]
"""Whose standard deviation divides a group's advantages."""
ObjectiveName = Literal["grpo", "dr_grpo", "dapo"]
"""The keys of `OBJECTIVES` in `train/loss.py`, which would import torch to check a config."""
SurrogateName = Literal["clip", "cispo", "sapo", "regression"]
"""The keys of `SURROGATES`, likewise."""
Ratio = Literal["token", "geometric", "sequence"]
UpdateView = Literal["own", "first"]
"""Under whose prompt a completion's log-probs are taken: its own variant's, or the first one's."""
NoiseSchedule = Literal["constant", "sigmoid"]
Schedule = Literal["constant", "cosine"]

# --- models ----------------------------------------------------------------------------------
PositionRule = Literal["published", "transformers"]
DecodeMode = Literal["auto", "dynamic", "static"]
LogProbMode = Literal["packed", "plain"]
AttentionMode = Literal["auto", "sdpa", "flex"]

# --- evaluation and looking ------------------------------------------------------------------
FramesMode = Literal["uniform", "linspace", "fps", "evidence", "blank"]
"""`linspace`: from the first frame to the very last; `fps`: two a second (Video-R1's rule);
`evidence`: all evidence frames are among those shown; `blank`: grey frames."""
EvaluationProtocol = Literal["video_r1", "direct"]
EvaluationGrading = Literal["video_r1", "direct", "tolerant"]
"""`video_r1`: Video-R1's evaluation; `direct`: the benchmark's own rules; `tolerant`: what a person
would accept."""
Worst = Literal["flat", "peaky", "truncated"]
GroupedBy = Literal["data_source", "problem_type"]
