"""Whether the Hugging Face hub can be reached, asked once and quickly."""

import importlib
import logging

_TIMEOUT_SECONDS = 5.0


def go_offline_if_unreachable() -> None:
    """Switch this process to the local cache when the hub does not answer.

    Otherwise each missing file is retried with pauses, which adds up to most of a minute of
    warnings before the error that the user should see.
    """
    import huggingface_hub
    from huggingface_hub import constants

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if constants.HF_HUB_OFFLINE:
        return
    session = huggingface_hub.get_session()
    # The hub's client library has changed its name between releases; its own error class is meant.
    http = importlib.import_module(type(session).__module__.partition(".")[0])
    try:
        session.head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except http.TransportError:
        constants.HF_HUB_OFFLINE = True
