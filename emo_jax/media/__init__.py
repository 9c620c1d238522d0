"""Reads and writes audio, video and pictures, and converts between frames, samples and seconds."""
