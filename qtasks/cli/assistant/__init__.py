"""What an assistant may ask of a broker: a read-only server of the Model Context Protocol."""
