"""Whether the Hugging Face hub can be reached, asked once and quickly."""

import importlib
import logging
import threading

_TIMEOUT_SECONDS = 5.0


def go_offline_if_unreachable() -> bool:
    """Switch this process to the local cache when the hub does not answer; whether it is offline.

    Otherwise each missing file is retried with pauses, which adds up to most of a minute of
    warnings before the error that the user should see.
    """
    import huggingface_hub
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return True
    session = huggingface_hub.get_session()
    # The hub's client library has changed its name between releases; its own error class is meant.
    http = importlib.import_module(type(session).__module__.partition(".")[0])
    answered = threading.Event()

    def ask() -> None:
        try:
            session.head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
        except http.TransportError:
            return
        answered.set()

    # A thread of its own: looking up a name has no time limit.
    thread = threading.Thread(target=ask, name="strive-hub", daemon=True)
    thread.start()
    thread.join(_TIMEOUT_SECONDS)
    if not answered.is_set():
        constants.HF_HUB_OFFLINE = True
    return bool(constants.HF_HUB_OFFLINE)
