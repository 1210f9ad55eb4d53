"""Real servers of models as processes on loopback."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path


def vllm_command(folder):
    """vLLM's own server of a tiny model, as "tiny"."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    command += ["--served-model-name", "tiny", "--dtype", "float32", "--enforce-eager"]
    return [*command, "--max-model-len", "2048", "--max-num-seqs", "32"]


def transformers_command(name):
    """`transformers serve` of a model of its hub cache."""
    program = str(Path(sys.executable).with_name("transformers"))
    return [program, "serve", name, "--device", "cpu", "--dtype", "float32"]


@contextmanager
def serving(command, log, **environment):
    """Run a server and give its URL as soon as it is up."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | environment,
        )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.5)
        else:
            raise TimeoutError(log.read_text()[-3000:])
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)
