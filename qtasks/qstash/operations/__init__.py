"""Code that several resources share: options, filters, publishing, providers of language models."""
