"""Finds faces in pictures and videos, and measures head rotation."""
