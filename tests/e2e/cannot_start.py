"""An app whose startup fails."""

from microws import App

app = App()


@app.on_startup
async def connect():
    raise LookupError("no database")
