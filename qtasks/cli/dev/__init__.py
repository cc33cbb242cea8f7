"""`qtasks dev`: the broker and the application in one terminal."""
