"""AWS's own settings: what botocore raises about them without an explanation is one line, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.errors import UserError
from sagemaker_launch.aws import client as aws
from sagemaker_launch.settings.cloud import CloudSettings


@pytest.mark.parametrize(
    ("config", "variables", "named"),
    [
        ("credential_process = /no/such/program", {}, "/no/such/program"),
        ("credential_process = /bin/echo {", {}, "JSONDecodeError"),
        ('credential_process = "/bin/echo', {}, "No closing quotation"),
        ("", {"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token"}, "token"),
        ("", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "foo"}, "foo"),
        ("", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://h:99999"}, "Port"),
    ],
)
def test_unusable_settings_of_aws_are_explained(
    config: str, variables: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config").write_text(f"[default]\n{config}\n")
    # Another file for each case: a session is kept by its variables.
    for name, value in ({"AWS_CONFIG_FILE": str(tmp_path / "config"), "HOME": str(tmp_path)} | variables).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"AWS's settings .* must name .*, got .*{named}.*aws configure list"):
        aws.client("sts", CloudSettings(region="us-east-1"))
