# SPDX-FileCopyrightText: The nibble authors
# SPDX-License-Identifier: Apache-2.0

"""Two rounds of ./dev chaos, in a process of its own: as root it moves into a network namespace."""
import pathlib
import random
import subprocess
import sys


def test_two_rounds_of_chaos(nibble):
    seed = random.SystemRandom().randrange(1 << 32)
    result = subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name("chaos.py")), "2", "--nibble", str(nibble),
                             "--seed", str(seed)], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr}"
    assert "nothing lost, nothing left" in result.stdout
