"""What operations of several resources share: options, filters, publishing, providers of language models."""
