"""What timm's users expect of a network, one module per option: feature levels, pooling, dilation, channels, memory."""
