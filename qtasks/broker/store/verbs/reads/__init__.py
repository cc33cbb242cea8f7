"""What the API and the loops ask about messages. Nothing here changes anything."""
