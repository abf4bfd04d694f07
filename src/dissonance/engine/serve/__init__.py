"""Serving behind NVIDIA Triton Inference Server: what runs inside the server, and what talks to it.

`interface.py` names the models and their tensors; `networks.py` and `endpoint.py` are the Python backend's side, `video.py` what the endpoint does;
`client.py` is the clients' side, `runtime.py` a scan's. `dissonance.export.repository` writes the folder that the server loads.
"""
