"""The web page: a portrait and a song are chosen, and the video plays while it is generated."""
