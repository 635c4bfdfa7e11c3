"""An LLM2CLIP model for transformers: CLIP's vision tower, and the adapter that takes an LLM's text vectors.

    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    images = model.get_image_features(pixel_values)   # [N, projection_dim]
    texts = model.get_text_features(vectors)          # [N, projection_dim], of an LLM's vectors [N, width]

Features are not normalised, as CLIPModel's are not. How an LLM makes vectors of captions (template, tokens that are averaged,
attention) is written in llm2clip.json.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPVisionModel, PreTrainedModel


class Residual(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.ln = nn.LayerNorm(width)
        self.fn = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, width))

    def forward(self, x):
        return x + self.fn(self.ln(x))


class TextAdapter(nn.Module):
    def __init__(self, input, output, blocks, expansion, l2_norm):
        super().__init__()
        self.l2_norm = l2_norm
        layers = [Residual(input, input * expansion) for _ in range(blocks)]
        self.adaptor = nn.Sequential(*layers, nn.LayerNorm(input), nn.Linear(input, output))

    def forward(self, vectors):
        return self.adaptor(F.normalize(vectors, dim=-1) if self.l2_norm else vectors)


class LLM2CLIPModel(PreTrainedModel):
    config_class = CLIPConfig
    base_model_prefix = "llm2clip"
    main_input_name = "pixel_values"
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        self.vision_model = CLIPVisionModel(config.vision_config).vision_model
        self.visual_projection = nn.Linear(config.vision_config.hidden_size, config.projection_dim, bias=False)
        self.text_adapter = TextAdapter(**config.text_adapter)
        self.logit_scale = nn.Parameter(torch.tensor(config.logit_scale_init_value))
        # After the sigmoid loss.
        bias = getattr(config, "logit_bias_init_value", None)
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))
        self.post_init()

    def get_image_features(self, pixel_values):
        return self.visual_projection(self.vision_model(pixel_values=pixel_values).pooler_output)

    def get_text_features(self, vectors):
        return self.text_adapter(vectors)

    def forward(self, pixel_values, vectors):
        """Scaled cosines of images and texts, with the bias if there is one: [images, texts]."""
        images = F.normalize(self.get_image_features(pixel_values), dim=-1)
        texts = F.normalize(self.get_text_features(vectors), dim=-1)
        logits = self.logit_scale.exp() * images @ texts.T
        return logits if self.logit_bias is None else logits + self.logit_bias
