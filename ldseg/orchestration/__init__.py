"""The part of ldseg that knows Ray, MLflow and Optuna; importing it sets an environment that keeps to itself."""

from __future__ import annotations

import os

SILENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",  # a busy machine imports torch in more than a minute
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",  # after 5 s Serve would kill and make it again, and again
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the program and not only the trial
    "RAY_AIR_NEW_OUTPUT": "0",  # the programs print their own progress
    "RAY_worker_niceness": "0",  # training and serving are what the machine is for
    "GIT_PYTHON_REFRESH": "quiet",
}

# before ray or mlflow is imported anywhere; a value that the operator has set stays
for _name, _value in SILENT.items():
    os.environ.setdefault(_name, _value)
