"""The peak memory that agents report is their own."""

import subprocess
import sys

ASK = "from iotsplit.runtime.runner import peak_rss_bytes as peak; print(peak())"


def peak_of(program: str) -> int:
    return int(
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    )


def test_the_peak_is_not_that_of_the_process_that_started_it() -> None:
    large = b"x" * (512 << 20)
    assert peak_of(ASK) < len(large)


def test_the_peak_stays_when_memory_is_given_back() -> None:
    assert peak_of(f"x = b'x' * (512 << 20); del x; {ASK}") > 512 << 20
