import sys
from pathlib import Path

# Test modules and the processes they start share the helpers that lie beside them.
sys.path.insert(0, str(Path(__file__).parent))
