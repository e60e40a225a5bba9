"""Finding good settings for a recipe: many short runs, the poor ones ended early, and all of them kept.

`tune` is the verb; Optuna proposes settings and judges, the trials are ordinary runs in processes of their own.
"""

from headrace.tuning.result import Trial, TuneResult
from headrace.tuning.tune import tune

__all__ = ["Trial", "TuneResult", "tune"]
