"""What the packer is measured by: public traces beside published baselines, and proven upper bounds."""
