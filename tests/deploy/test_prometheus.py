"""deploy/prometheus.yml against a service that is started as the drop-in for TLS says."""

import json
from pathlib import Path

import pytest
import requests
import yaml  # type: ignore[import-untyped]  # it ships no types

from tests.cli.conftest import one_sentence
from tests.deploy.conftest import DEPLOY, executed, settings
from tests.support.certificates import Authority
from tests.support.systemd import Manager

DROP_IN = "aiomigrate.service.d/tls.conf"
CONFIG = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """What the drop-in executes, at any port, and with the credentials that it names only."""
    files = Authority().directory(tmp_path / "tls")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    for credential in settings(DROP_IN, "LoadCredential"):
        name, _, path = credential.partition(":")
        (credentials / name).write_bytes((files / Path(path).name).read_bytes())
    line = executed(DROP_IN, "ExecStart", tmp_path)
    (at,) = [n for n, argument in enumerate(line) if argument.startswith("tcp:")]
    host, _, port = line[at].rpartition(":")
    for scraped in CONFIG["scrape_configs"][0]["static_configs"]:
        assert {target.rpartition(":")[2] for target in scraped["targets"]} == {port}
    line[at] = f"{host}:0"
    return line


def test_it_scrapes(command: list[str], api_socket: Path, tmp_path: Path) -> None:
    (job,) = CONFIG["scrape_configs"]
    tls = {
        key: str(tmp_path / "tls" / Path(value).name) for key, value in job["tls_config"].items()
    }
    with Manager(api_socket) as manager, manager.service(command) as service:
        assert service.stdout
        service.stdout.readline()  # the unix socket
        port = json.loads(service.stdout.readline())["address"].rpartition(":")[2]
        url = f"{job['scheme']}://127.0.0.1:{port}{job['metrics_path']}"
        scraped = requests.get(
            url, verify=tls["ca_file"], cert=(tls["cert_file"], tls["key_file"]), timeout=60
        )
        assert scraped.ok
        assert "aiomigrate_migrations_running" in scraped.text
        with pytest.raises(requests.exceptions.ConnectionError):
            requests.get(url, verify=tls["ca_file"], timeout=60)


def test_without_its_files_it_does_not_start(
    command: list[str], api_socket: Path, tmp_path: Path
) -> None:
    (tmp_path / "credentials" / "server-key.pem").unlink()
    with Manager(api_socket) as manager, manager.service(command) as service:
        _, err = service.communicate(timeout=60)
        assert service.returncode == 2
        assert "server-key.pem: No such file or directory" in one_sentence(err)
