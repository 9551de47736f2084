"""ONNX Runtime here: sessions, comparison with tolerance 0, golden vectors, latency and profiles."""
