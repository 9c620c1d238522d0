"""Generation: the pipeline, the video sampler, preparation of its inputs, and writing of the result."""
