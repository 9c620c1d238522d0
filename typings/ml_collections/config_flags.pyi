from typing import Any

DEFINE_config_file: Any
DEFINE_config_dict: Any

def __getattr__(name: str) -> Any: ...
