"""What a Celery code base uses and qtasks spells otherwise: each name with what to write instead."""
