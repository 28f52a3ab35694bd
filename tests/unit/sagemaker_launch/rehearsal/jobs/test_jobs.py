"""Training and tuning jobs of the rehearsal, without a server and without processes."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import threading
import venv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from moto import mock_aws
from moto.cloudwatch.models import cloudwatch_backends

from sagemaker_launch.aws.readback import differences
from sagemaker_launch.rehearsal.faults import Faults, FaultSettings
from sagemaker_launch.rehearsal.jobs.log import JobMetrics, Metrics, float32
from sagemaker_launch.rehearsal.jobs.strategies import make_strategy
from sagemaker_launch.rehearsal.jobs.training import TrainingJob
from sagemaker_launch.rehearsal.jobs.tuning import TuningJob, TuningRunner, child_request, falls_behind
from sagemaker_launch.rehearsal.keys import Keys
from sagemaker_launch.rehearsal.machine.image import Image
from sagemaker_launch.rehearsal.machine.objects import DataError, FolderSync, Objects, Uri, relative_path
from sagemaker_launch.rehearsal.machine.runner import JobRunner, Machine, Settings, host_order
from sagemaker_launch.rehearsal.rules import check_shape
from tests.unit.sagemaker_launch.rehearsal.test_rules import CONFIG, M5, RESOURCES, TRAINING, TUNING, change

KEYS = Keys("123456789012")


def test_the_last_match_of_a_metric_counts_and_what_is_no_number_does_not() -> None:
    metrics = Metrics([{"Name": "loss", "Regex": "loss=([^ ;]+)"}, {"Name": "never", "Regex": "never=(.*)"}])
    for line in ("loss=0.5", "loss=none", "a loss=0.4; loss=0.1 b", "accuracy=1", "loss=1e999999"):
        metrics.read(line)
    assert [point.value for point in metrics.points("loss")] == [0.5, float32(0.4), float32(0.1), float("inf")]
    assert set(metrics.last()) == {"loss"}


def test_values_of_a_job_are_in_cloudwatch_but_for_those_that_it_refuses() -> None:
    account, region = "210987654321", "eu-west-3"
    published = JobMetrics(account, region, "job")
    metrics = Metrics([{"Name": "loss", "Regex": "loss=(\\S+)"}], published.put)
    other = Metrics([{"Name": "loss", "Regex": "loss=(\\S+)"}], JobMetrics(account, region, "other").put)
    for line in ("loss=0.5", "loss=nan", "loss=inf", "loss=1.5"):
        metrics.read(line)
    other.read("loss=9")
    assert len(metrics.points("loss")) == 4
    minute = datetime.timedelta(minutes=1)
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    found = cloudwatch_backends[account][region].get_metric_statistics(
        "/aws/sagemaker/TrainingJobs",
        "loss",
        now - minute,
        now + minute,
        60,
        ["Average", "SampleCount"],
        [{"Name": "TrainingJobName", "Value": "job"}],
    )
    assert [(point.average, point.sample_count) for point in found] == [(1.0, 2)]


def test_a_job_tells_of_its_states_in_order_and_of_its_request_as_it_came() -> None:
    job = TrainingJob("arn:job", {**TRAINING, "Tags": [{"Key": "a", "Value": "b"}], "EnableManagedSpotTraining": True})
    for secondary in ("Downloading", "Training"):
        job.enter(secondary)
    job.request_stop()
    # What the runner was about to say no longer counts.
    job.enter("Uploading")
    job.training_seconds = 10
    job.finish("Stopped", "Stopped")
    job.request_stop()
    told = job.describe()
    assert list(differences(TRAINING, told)) == []
    assert "Tags" not in told
    steps = told["SecondaryStatusTransitions"]
    assert [each["Status"] for each in steps] == ["Starting", "Downloading", "Training", "Stopping", "Stopped"]
    assert all(first["EndTime"] == then["StartTime"] for first, then in itertools.pairwise(steps))
    assert (told["TrainingTimeInSeconds"], told["BillableTimeInSeconds"]) == (10, 3)


@pytest.mark.parametrize(
    ("values", "earlier", "maximize", "behind"),
    [
        ([5.0], [], False, False),
        ([], [[1.0]], False, False),
        # Running averages up to epoch 2: 1.5, 3.0, 4.0; the median is 3.0.
        ([9.0, 3.1], [[2.0, 1.0], [4.0, 2.0], [6.0, 2.0]], False, True),
        ([9.0, 2.9], [[2.0, 1.0], [4.0, 2.0], [6.0, 2.0]], False, False),
        ([0.0, 2.9], [[2.0, 1.0], [4.0, 2.0], [6.0, 2.0]], True, True),
        # Earlier jobs that ended before this epoch say nothing of it.
        ([1.0, 1.0, 9.0], [[2.0, 1.0]], False, False),
    ],
)
def test_early_stopping_compares_with_the_median_of_running_averages(
    values: list[float], earlier: list[list[float]], maximize: bool, behind: bool
) -> None:
    assert falls_behind(values, earlier, maximize) is behind


class Jobs:
    """A service whose training jobs do what a script says, at once."""

    def __init__(self, script: Callable[[TrainingJob, int], None], instances: int = 10) -> None:
        self.script, self.instances = script, instances
        self.started: list[TrainingJob] = []

    def instances_left(self, definition: Mapping[str, Any]) -> int:
        return self.instances

    def start_child(self, request: Mapping[str, Any], tuning_job_arn: str) -> TrainingJob:
        job = TrainingJob(f"arn:{request['TrainingJobName']}", request, tuning_job_arn)
        self.started.append(job)
        self.script(job, len(self.started))
        if not job.finished.is_set():
            # A job that runs until it is told to stop.
            threading.Thread(target=lambda: (job.stop_requested.wait(), job.finish("Stopped", "Stopped"))).start()
        return job


def completes(values: Callable[[int], list[float]]) -> Callable[[TrainingJob, int], None]:
    def script(job: TrainingJob, number: int) -> None:
        for value in values(number):
            job.metrics.read(f"val_loss={value}")
        job.finish("Completed", "Completed")

    return script


def tune(jobs: Jobs, *changes: tuple[str, object]) -> TuningJob:
    request = TUNING
    for path, value in changes:
        request = change(request, f"{CONFIG}.{path}", value)
    tuning = TuningJob("arn:tuning", request, [{"Key": "a", "Value": "b"}])
    runner = TuningRunner(tuning, make_strategy(tuning.config), jobs, threading.Event())
    runner.start()
    runner.join(20)
    assert tuning.finished.is_set()
    return tuning


def test_jobs_of_a_search_get_the_resources_of_either_field() -> None:
    flexible = change(TUNING, "TrainingJobDefinition.ResourceConfig", None)
    flexible = change(flexible, RESOURCES, {"InstanceConfigs": [M5], "VolumeKmsKeyId": "key"})
    definition = TuningJob("arn:tuning", flexible, []).definition
    request = dict(child_request(definition, {}))
    assert request["ResourceConfig"] == definition["ResourceConfig"] == {**M5, "VolumeKmsKeyId": "key"}
    # SDK v2 reads what it did not send.
    assert definition["HyperParameterTuningResourceConfig"] and "HyperParameterTuningResourceConfig" not in request
    check_shape("CreateTrainingJob", {**request, "TrainingJobName": "child"})


def test_a_tuning_job_counts_and_names_its_best() -> None:
    tuning = tune(Jobs(completes(lambda number: [9.0, float(10 - number)])))
    told = tuning.describe()
    assert (told["HyperParameterTuningJobStatus"], tuning.failure_reason) == ("Completed", None)
    assert told["TrainingJobStatusCounters"]["Completed"] == 4
    assert told["BestTrainingJob"]["TrainingJobName"].startswith("tuning-004-")
    assert told["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"] == 6
    assert told["TrainingJobDefinition"]["StaticHyperParameters"] == {
        "a": "1",
        "_tuning_objective_metric": '"val_loss"',
    }
    assert [each["Name"] for each in told["TrainingJobDefinition"]["AlgorithmSpecification"]["MetricDefinitions"]] == [
        "val_loss",
        "ObjectiveMetric",
    ]
    assert told["TrainingJobDefinition"]["OutputDataConfig"]["KmsKeyId"] == ""
    # What AWS fills in, and SDK v2 reads when it attaches to the job.
    config = told["HyperParameterTuningJobConfig"]
    assert config["TrainingJobEarlyStoppingType"] == "Off"
    assert config["ParameterRanges"]["CategoricalParameterRanges"] == []
    child = tuning.children[0].job
    final = {each["MetricName"]: each["Value"] for each in child.describe()["FinalMetricDataList"]}
    assert final == {"val_loss": 9.0, "ObjectiveMetric": 9.0}
    assert child.request["HyperParameters"] == {
        "a": "1",
        "_tuning_objective_metric": '"val_loss"',
        **tuning.children[0].tuned,
    }
    assert child.tags == tuning.tags


def test_a_tuning_job_gives_up_when_its_objective_never_shows() -> None:
    jobs = Jobs(completes(lambda number: []))
    tuning = tune(jobs, ("ResourceLimits.MaxNumberOfTrainingJobs", 20))
    assert tuning.status == "Failed"
    assert str(tuning.failure_reason).startswith("No objective metrics found after running ")
    assert len(jobs.started) < 10
    assert {tuning.objective_status(child) for child in tuning.children} == {"Failed"}


@pytest.mark.parametrize(
    ("count", "reason"),
    [(20, "No training job succeeded after 5 attempts."), (2, "All training jobs failed.")],
)
def test_a_tuning_job_fails_when_all_its_jobs_do(count: int, reason: str) -> None:
    jobs = Jobs(lambda job, _: job.finish("Failed", "Failed", "AlgorithmError: , exit code: 1"))
    tuning = tune(jobs, ("ResourceLimits.MaxNumberOfTrainingJobs", count))
    assert tuning.status == "Failed"
    assert str(tuning.failure_reason).startswith(reason)


@pytest.mark.parametrize(
    "criterion",
    [
        {"TargetObjectiveMetricValue": 7.0},
        {"BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 3}},
    ],
)
def test_a_completion_criterion_ends_a_tuning_job_before_its_last_job(criterion: dict[str, object]) -> None:
    # 9, 8, 7, then never better.
    jobs = Jobs(completes(lambda number: [float(max(7, 10 - number))]))
    tuning = tune(jobs, ("ResourceLimits.MaxNumberOfTrainingJobs", 50), ("TuningJobCompletionCriteria", criterion))
    assert tuning.status == "Completed"
    assert 3 <= len(jobs.started) < 12


def test_early_stopping_stops_the_job_that_falls_behind() -> None:
    def script(job: TrainingJob, number: int) -> None:
        if number < 3:
            completes(lambda _: [1.0, 1.0])(job, number)
        else:
            job.metrics.read("val_loss=5.0")

    tuning = tune(Jobs(script), ("ResourceLimits.MaxNumberOfTrainingJobs", 3), ("TrainingJobEarlyStoppingType", "Auto"))
    assert tuning.status == "Completed"
    assert tuning.describe()["TrainingJobStatusCounters"] == {
        **{"Completed": 2, "InProgress": 0, "RetryableError": 0, "NonRetryableError": 0},
        "Stopped": 1,
    }
    # Its last value is its objective.
    assert tuning.objective_status(tuning.children[2]) == "Succeeded"


def test_stopping_a_tuning_job_stops_its_jobs() -> None:
    tuning = TuningJob("arn:tuning", TUNING, [])
    jobs = Jobs(lambda job, _: tuning.request_stop())
    runner = TuningRunner(tuning, make_strategy(tuning.config), jobs, threading.Event())
    runner.start()
    runner.join(20)
    assert tuning.status == "Stopped"
    assert [job.status for job in jobs.started] == ["Stopped"] * 2


def test_a_tuning_job_that_runs_too_long_is_stopped() -> None:
    # The service takes 120 s and more; a negative limit is over at once.
    tuning = tune(Jobs(lambda job, _: None), ("ResourceLimits.MaxRuntimeInSeconds", -1))
    assert tuning.status == "Stopped"


def test_a_bug_in_a_tuning_job_fails_it_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def script(job: TrainingJob, number: int) -> None:
        raise RuntimeError("a bug")

    tuning = tune(Jobs(script))
    assert (tuning.status, str(tuning.failure_reason)[:19]) == ("Failed", "InternalServerError")
    assert "a bug" in caplog.text


@pytest.mark.parametrize(("attempts", "status"), [(1, "Failed"), (2, "Completed")])
def test_an_internal_error_is_tried_again_as_often_as_asked(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, attempts: int, status: str
) -> None:
    job = TrainingJob("arn:job", {**TRAINING, "RetryStrategy": {"MaximumRetryAttempts": attempts}})
    runs = []

    def run(runner: JobRunner) -> None:
        runs.append(1)
        if len(runs) < 3:
            raise RuntimeError("a bug")
        job.finish("Completed", "Completed")

    monkeypatch.setattr(JobRunner, "_run", run)
    settings = Settings(root=tmp_path)
    # Nothing of the machine is used before the job's first step.
    machine = Machine(settings, image=None, namespaces=None, objects=None, keys=KEYS)
    JobRunner(job, "us-east-1", machine).run()
    assert (job.status, len(runs)) == (status, attempts + 1)
    assert caplog.text.count("RuntimeError: a bug") == 2
    if status == "Failed":
        assert str(job.failure_reason).startswith("InternalServerError: We encountered an internal error.")


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (
            "echo; echo first; echo \"No module named 'sagemaker_training'\" >&2; exit 1",
            "first\nNo module named 'sagemaker_training', exit code: 1",
        ),
        ("mkdir -p $ML/output; printf ' \\n' > $ML/output/failure; echo last; exit 2", "last, exit code: 2"),
        ("mkdir -p $ML/output; echo written > $ML/output/failure; echo last; exit 3", "written, exit code: 3"),
        ("exit 4", "the container printed nothing, exit code: 4"),
        ("echo early; i=0; while [ $i -lt 30 ]; do i=$((i+1)); printf '%100d\\n' $i; done; exit 5", None),
    ],
)
def test_a_job_that_fails_has_a_reason(objects: Objects, tmp_path: Path, script: str, reason: str | None) -> None:
    image = Image(tmp_path / "image")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(image.root)
    algorithm = {
        **TRAINING["AlgorithmSpecification"],
        "ContainerEntrypoint": ["sh", "-c", f"ML=$SAGEMAKER_BASE_DIR; {script}"],
    }
    job = TrainingJob("arn:job", {**TRAINING, "AlgorithmSpecification": algorithm, "InputDataConfig": []})
    machine = Machine(Settings(root=tmp_path, log_seconds=0.1), image, None, objects, KEYS)
    JobRunner(job, "us-east-1", machine).run()
    assert job.status == "Failed"
    if reason is not None:
        assert job.failure_reason == f"AlgorithmError: {reason}"
    else:
        whole = str(job.failure_reason)
        assert len(whole) <= 1024 and whole.endswith(f"{30:100d}, exit code: 5")
        assert whole.splitlines()[1] == f"{30 - whole.count(chr(10)) + 1:100d}", "whole lines"


def test_a_script_is_an_image_of_its_own_also_where_opt_ml_is_elsewhere(objects: Objects, tmp_path: Path) -> None:
    objects.put(
        Uri("bucket", "code/train.py"), b"import sys; print('val_loss=0.5'); sys.exit('argument ' + sys.argv[1])"
    )
    image = Image(tmp_path / "image")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(image.root)
    request = change(TRAINING, "AlgorithmSpecification.TrainingImage", "rehearsal.local/script:1")
    request = change(request, "AlgorithmSpecification.ContainerArguments", ["/opt/ml/model"])
    job = TrainingJob("arn:job", request)
    machine = Machine(Settings(root=tmp_path, log_seconds=0.1), image, None, objects, KEYS)
    JobRunner(job, "us-east-1", machine).run()
    assert [point.value for point in job.metrics.points("val_loss")] == [0.5]
    reason = str(job.failure_reason)
    assert reason.startswith(f"AlgorithmError: val_loss=0.5\nargument {tmp_path}/jobs/") and "/ml/model, exit" in reason


@pytest.mark.parametrize("count", [2, 3, 12])
def test_several_hosts_do_not_begin_with_the_first_and_have_one_order(count: int) -> None:
    orders = [host_order(job, count) for job in ("dogs-1", "dogs-2", "cats-1")]
    for order in orders:
        assert sorted(order) == sorted(f"algo-{number}" for number in range(1, count + 1))
        assert order[0] != "algo-1"
    assert orders[0] == host_order("dogs-1", count)
    assert host_order("dogs-1", 1) == ["algo-1"]


def test_the_reason_and_the_exit_code_are_those_of_the_host_that_failed(objects: Objects, tmp_path: Path) -> None:
    image = Image(tmp_path / "image")
    venv.EnvBuilder(symlinks=True, with_pip=False).create(image.root)
    script = "echo begins; case $CURRENT_HOST in algo-2) sleep 60;; *) echo breaks; exit 7;; esac"
    request = change({**TRAINING, "InputDataConfig": []}, "ResourceConfig.InstanceCount", 2)
    request = change(request, "AlgorithmSpecification.ContainerEntrypoint", ["sh", "-c", script])
    job = TrainingJob("arn:job", request)
    machine = Machine(Settings(root=tmp_path, log_seconds=0.1), image, None, objects, KEYS)
    JobRunner(job, "us-east-1", machine).run()
    assert job.failure_reason == "AlgorithmError: begins\nbreaks, exit code: 7"


@pytest.mark.parametrize(
    ("prefix", "key", "relative"),
    [
        ("data/", "data/a/1.jpg", "a/1.jpg"),
        ("data", "data/a/1.jpg", "a/1.jpg"),
        ("", "data/1.jpg", "data/1.jpg"),
        ("data/weights.pt", "data/weights.pt", "weights.pt"),
        ("data/part", "data/part-1/x", "part-1/x"),
    ],
)
def test_an_object_lands_at_its_path_below_the_prefix(prefix: str, key: str, relative: str) -> None:
    assert relative_path(prefix, key) == relative


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Objects]:
    with mock_aws():
        found = Objects("123456789012", "us-east-1", tmp_path / "cache")
        found._backend.create_bucket("bucket", "us-east-1")
        yield found


def test_an_object_has_the_type_that_it_was_uploaded_with(objects: Objects) -> None:
    objects.put(Uri("bucket", "photo"), b"photo")
    assert objects.content_type(Uri("bucket", "photo")) == "binary/octet-stream"  # S3's own
    objects._backend.get_bucket("bucket").keys["photo"].set_metadata({"Content-Type": "image/jpeg"})
    assert objects.content_type(Uri("bucket", "photo")) == "image/jpeg"
    with pytest.raises(DataError, match="does not exist"):
        objects.content_type(Uri("bucket", "pho"))


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/tmp/out", "../" * 20 + "out"])
def test_no_object_is_restored_outside_of_its_folder(objects: Objects, tmp_path: Path, name: str) -> None:
    objects.put(Uri("bucket", f"checkpoints/{name}"), b"from somebody else")
    folder = tmp_path / "job" / "checkpoints"
    with pytest.raises(DataError, match="outside its folder"):
        objects.restore(Uri("bucket", "checkpoints"), folder)
    assert not list(tmp_path.rglob("out"))


def s3_source(uri: str, kind: str = "S3Prefix") -> dict[str, str]:
    return {"S3DataType": kind, "S3Uri": uri}


def test_jobs_share_one_download_of_an_object(objects: Objects, tmp_path: Path) -> None:
    objects.put(Uri("bucket", "data/a"), b"1")
    for name in ("first", "second"):
        objects.fill_channel(s3_source("s3://bucket/data"), tmp_path / name, "role", (0, 1), copy=False)
    assert (tmp_path / "first" / "a").samefile(tmp_path / "second" / "a")
    objects.put(Uri("bucket", "data/a"), b"2")
    objects.fill_channel(s3_source("s3://bucket/data"), tmp_path / "third", "role", (0, 1), copy=True)
    assert (tmp_path / "third" / "a").read_bytes() == b"2"
    assert (tmp_path / "third" / "a").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ([{"prefix": "s3://bucket/data/"}, "a", "missing"], "s3://bucket/data/missing, named by manifest"),
        ({"prefix": "s3://bucket/data/"}, "must be [{"),
        ([{"prefix": "s3://bucket/"}, "../data/a"], "does not exist"),
    ],
)
def test_a_bad_manifest_fails_the_download(objects: Objects, tmp_path: Path, manifest: object, reason: str) -> None:
    objects.put(Uri("bucket", "data/a"), b"1")
    objects.put(Uri("bucket", "manifest"), json.dumps(manifest).encode())
    with pytest.raises(DataError) as error:
        objects.fill_channel(
            s3_source("s3://bucket/manifest", "ManifestFile"), tmp_path / "channel", "role", (0, 1), copy=False
        )
    assert reason in str(error.value)


def test_a_key_cannot_leave_its_channel(objects: Objects, tmp_path: Path) -> None:
    objects.put(Uri("bucket", "data/../../evil"), b"1")
    with pytest.raises(DataError, match="outside its folder"):
        objects.fill_channel(s3_source("s3://bucket/data/"), tmp_path / "channel", "role", (0, 1), copy=False)
    assert not (tmp_path / "evil").exists()


def test_checkpoints_are_uploaded_when_they_change_and_come_back_as_they_were(objects: Objects, tmp_path: Path) -> None:
    folder, uri = tmp_path / "checkpoints", Uri("bucket", "checkpoints/job/")
    (folder / "deep").mkdir(parents=True)
    (folder / "old").write_text("restored before the start")
    sync = FolderSync(objects, folder, uri)
    assert sync.sync() == 0
    (folder / "deep" / "new").write_text("1")
    assert (sync.sync(), sync.sync()) == (1, 0)
    (folder / "deep" / "new").write_text("22")
    assert sync.sync() == 1
    assert objects.restore(uri, tmp_path / "other") == 1
    assert (tmp_path / "other" / "deep" / "new").read_text() == "22"


def test_checkpoints_that_a_job_deletes_are_deleted_and_those_of_others_are_not(
    objects: Objects, tmp_path: Path
) -> None:
    folder, uri = tmp_path / "checkpoints", Uri("bucket", "checkpoints/search/")
    objects.put(uri / "mine/1", b"1")
    objects.put(uri / "other/1", b"1")
    objects.restore(uri, folder)
    sync = FolderSync(objects, folder, uri)
    (folder / "mine" / "2").write_text("2")
    assert sync.sync() == 1
    objects.put(uri / "other/2", b"of a job that runs beside this one")
    shutil.rmtree(folder / "mine")
    assert sync.sync() == 0
    assert [key.name for key in objects.below(uri)] == ["checkpoints/search/other/1", "checkpoints/search/other/2"]


def test_what_smdebug_deletes_stays_in_s3_where_the_role_may_delete_nothing(objects: Objects, tmp_path: Path) -> None:
    folder, uri = tmp_path / "tensors", Uri("bucket", "debug/job/")
    folder.mkdir()
    sync = FolderSync(objects, folder, uri, deletes=False)
    (folder / "claim.smd").write_text("the first process")
    assert sync.sync() == 1
    (folder / "claim.smd").unlink()
    assert sync.sync() == 0
    assert [key.name for key in objects.below(uri)] == ["debug/job/claim.smd"]


def test_output_to_a_bucket_that_is_missing_is_an_error_of_the_client(objects: Objects) -> None:
    with pytest.raises(DataError, match=r"ClientError: Artifact upload failed.*NoSuchBucket"):
        objects.put(Uri("nowhere", "a"), b"")


def test_faults_follow_their_seed_and_rate() -> None:
    settings = FaultSettings.parse("rate=0.2,seed=1,slow_seconds=0.5")
    assert settings == FaultSettings(0.2, 1, 0.5)
    first, second = Faults(settings), Faults(settings)
    drawn = [first.next() for _ in range(500)]
    for _ in range(100):
        # How often storage is asked changes nothing for the calls.
        second.delay()
    assert [second.next() for _ in range(500)] == drawn
    assert {*drawn} == {None, "throttling", "error", "lost"}
    assert 60 < sum(fault is not None for fault in drawn) < 140
    assert {first.delay() for _ in range(100)} == {0.0, 0.5}
    assert [first.tags_are_late("arn") for _ in range(4)] == [True, True, False, False]
    assert first.tags_are_late("another")
    quiet = Faults(FaultSettings())
    assert not quiet.tags_are_late("arn")
    assert {quiet.next() for _ in range(100)} == {None}
    assert quiet.delay() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rates=1", "unknown 'rates', known are rate, seed, slow_seconds"),
        ("rate=often", "rate must be a number, got 'often'"),
        ("rate=1", r"rate must be in \[0, 1\), got 1.0"),
    ],
)
def test_faults_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaultSettings.parse(text)
