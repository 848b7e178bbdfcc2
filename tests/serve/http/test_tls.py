"""The service with a certificate of its own: real processes, real HTTPS."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from service import TOKEN, Service

from ldseg.bundle import Bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed"),
]


def test_a_service_with_a_certificate_speaks_https_alone_and_says_what_its_start_waits_for(
    bundle: Bundle, data: Path, tmp_path: Path
) -> None:
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ldseg"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "certificate.pem"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    service = Service(bundle.path, data, tmp_path / "runs", "--certificate", str(certificate), "--key", str(key))
    plain, service.url = service.url, service.url.replace("http:", "https:")
    trusted = ssl.create_default_context(cafile=certificate)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    try:
        with httpx.Client(
            base_url=service.url, headers=headers, verify=trusted, timeout=120, trust_env=False
        ) as service.http:
            service.wait_ready()
            cohort = service.post({"case_0": data / "case_0.nii.gz"}, samples=2)
            assert service.wait(cohort)["counts"]["done"] == 1
            assert service.maps(cohort, "case_0")["label"]
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{service.url}/health/live", trust_env=False)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{plain}/health/live", trust_env=False, timeout=60)
        said = service.log.read_text()  # a file: nothing of it waits in a buffer
        steps = ["reading the model", "starting Ray\n", "starting Ray Serve", f"at {service.url}\n", "samplers load"]
        places = [said.find(step) for step in steps]
        assert -1 not in places and places == sorted(places), said
    finally:
        status, _ = service.stop()
    assert status == 0, service.log.read_text()[-2000:]
