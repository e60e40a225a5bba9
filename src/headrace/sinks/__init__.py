"""Where a run's events go beside its own file: TensorBoard, Prometheus, MLflow, Weights & Biases."""

from headrace.sinks.feeding import END_SEC, Sinks
from headrace.sinks.mlflow import MLflow
from headrace.sinks.naming import FORMS, sinks_of, with_named
from headrace.sinks.prometheus import Prometheus
from headrace.sinks.sending import Sent, send
from headrace.sinks.sink import Sink
from headrace.sinks.tensorboard import TensorBoard
from headrace.sinks.wandb import WandB

__all__ = [
    "END_SEC",
    "FORMS",
    "MLflow",
    "Prometheus",
    "Sent",
    "Sink",
    "Sinks",
    "TensorBoard",
    "WandB",
    "send",
    "sinks_of",
    "with_named",
]
