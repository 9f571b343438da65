import hashlib
from pathlib import Path

CLIENT = Path(__file__).parents[1] / "deepseek_client" / "client.py"
SHA256 = "b45531d59dc304cad7435f95206f9f17e3c839a946c66d26427814ffcf1186f6"


def test_client_is_untouched():
    """The legacy client is, byte for byte, the one that deployments have."""
    assert hashlib.sha256(CLIENT.read_bytes()).hexdigest() == SHA256, (
        "deepseek_client/client.py is frozen: undo the change. "
        "What the legacy client lacks is added around it, in facade.py or transport.py, and never in it."
    )
