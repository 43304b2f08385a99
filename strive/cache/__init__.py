"""The cache: the only contract between the offline and the online stage.

Write order is the commit order: frame pixels, then the `videos-*` part that lists them, then
embeddings, then scores. What no committed part lists does not exist.
"""
