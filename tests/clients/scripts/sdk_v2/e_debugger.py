"""A job that SageMaker Debugger watches, as the cells of a notebook have it: hook, rules, profiler, tensors."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import time
from pathlib import Path

import sagemaker
from sagemaker.debugger import (
    CollectionConfig,
    DebuggerHookConfig,
    FrameworkProfile,
    ProfilerConfig,
    ProfilerRule,
    Rule,
    rule_configs,
)
from sagemaker.pytorch import PyTorch

from tests.clients.recording import works

BUCKET = os.environ["BUCKET"]
session = sagemaker.Session(default_bucket=BUCKET)
TRIAL = """
import json, sys
from smdebug.trials import create_trial
trial = create_trial(sys.argv[1])
trial.wait_for_steps([10])  # which reads all steps that are there
[loss] = trial.tensor_names(regex="CrossEntropyLoss_output")
value = float(trial.tensor(loss).value(0))
print(json.dumps({"steps": trial.steps(), "loss": value, "gradients": trial.tensor_names(collection="gradients")}))
"""

with works("PyTorch.fit with DebuggerHookConfig, ProfilerConfig and rules"):
    estimator = PyTorch(
        entry_point="train_model.py",
        source_dir=str(Path(__file__).with_name("debugged")),
        role=os.environ["ROLE"],
        framework_version="1.13",
        py_version="py39",
        instance_count=1,
        instance_type="ml.m5.xlarge",
        sagemaker_session=session,
        hyperparameters={"steps": 12},
        debugger_hook_config=DebuggerHookConfig(
            hook_parameters={"train.save_interval": "2", "eval.save_interval": "1"},
            # The collections that the rules need come from the SDK, with an interval of 500 steps.
            collection_configs=[CollectionConfig("biases", {"save_interval": "2"})],
        ),
        profiler_config=ProfilerConfig(
            system_monitor_interval_millis=500, framework_profile_params=FrameworkProfile(num_steps=2)
        ),
        rules=[
            Rule.sagemaker(rule_configs.vanishing_gradient()),
            Rule.sagemaker(rule_configs.loss_not_decreasing()),
            ProfilerRule.sagemaker(rule_configs.LowGPUUtilization()),
            ProfilerRule.sagemaker(rule_configs.ProfilerReport()),
        ],
    )
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        estimator.fit(wait=True)
    assert estimator.latest_training_job.describe()["TrainingJobStatus"] == "Completed"

with works("TrainingJob.rule_job_summary"):
    # Rules end after the job, on AWS too.
    until = time.monotonic() + 120
    while time.monotonic() < until and any(
        each["RuleEvaluationStatus"] == "InProgress" for each in estimator.latest_training_job.rule_job_summary()
    ):
        time.sleep(1)
    found = {
        each["RuleConfigurationName"]: (each["RuleEvaluationStatus"], each.get("StatusDetails", ""))
        for each in estimator.latest_training_job.rule_job_summary()
    }
    assert found["VanishingGradient"][0] == "NoIssuesFound", found
    assert found["LossNotDecreasing"][0] in ("NoIssuesFound", "IssuesFound"), found
    for name in ("LowGPUUtilization", "ProfilerReport"):
        assert found[name][0] == "Stopped" and "not rehearsed" in found[name][1], found

with works("Estimator.latest_job_debugger_artifacts_path, smdebug's create_trial"):
    path = estimator.latest_job_debugger_artifacts_path()
    assert path == f"s3://{BUCKET}/{estimator.latest_training_job.name}/debug-output"
    done = subprocess.run(
        [os.environ["SMDEBUG_PYTHON"], "-c", TRIAL, path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    trial = json.loads(done.stdout.splitlines()[-1])
    assert trial["steps"] == [0, 2, 4, 6, 8, 10], trial
    assert 0 < trial["loss"] < 3 and len(trial["gradients"]) == 4, trial
