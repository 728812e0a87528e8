"""What surrounds the steps of a language model: sampling, stops, streamed text, chat templates. No torch."""
