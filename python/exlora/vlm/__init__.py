"""exllamav2's vision models, which exlora does not have. The names can be imported; using them is an error."""

from exlora.vlm.mmprojector import ExLlamaV2MultimodalProjector
from exlora.vlm.vision_tower import ExLlamaV2VisionTower

__all__ = ["ExLlamaV2MultimodalProjector", "ExLlamaV2VisionTower"]
