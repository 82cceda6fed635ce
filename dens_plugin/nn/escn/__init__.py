"""eSCN's message passing (Passaro and Zitnick, arXiv:2302.03655) on plain tensors, upon `dens_plugin.nn.so2`.

| file | noun |
|---|---|
| `first_layer` | of a convolution: applied to nodes, before they are rotated |
| `second_layer` | of a convolution: for both ends of an edge in one product |
| `message_sum` | from the first layer to the sum of messages at the nodes |
"""
