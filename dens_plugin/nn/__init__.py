"""Building blocks shared by all backbones."""
