"""The stages: files in, library called, files out. See `siren.stages.pipeline` for their order."""
