"""Everything that deployment needs: read a bundle, sample, run engines, write training sets. Never imports PyTorch."""
