"""Arguments and results to bytes and back: parameters, annotations, the envelope, codecs."""
