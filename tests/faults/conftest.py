import sys
from pathlib import Path

# The processes that tests start share the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
