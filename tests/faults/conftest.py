import sys
from pathlib import Path

# The processes that tests start share the helpers that lie beside them, and the servers that misbehave are storage's.
HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "storage")]
