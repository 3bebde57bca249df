"""What is watched while training runs: the trust region, charts of TensorBoard, numbers that are not finite."""
