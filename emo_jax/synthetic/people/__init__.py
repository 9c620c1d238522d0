"""A rendered world of people: heads with skin, hair and teeth, whose lips follow the phonemes of their voices."""
