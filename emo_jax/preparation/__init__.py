"""From videos and pictures to records, and from records to latents."""
