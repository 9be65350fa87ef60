"""Audio in and out, resampling, and the codec in windows that bound the memory."""
