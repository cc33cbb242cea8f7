"""The views of the console, one module each: a handler answers one endpoint of docs/console.md."""
