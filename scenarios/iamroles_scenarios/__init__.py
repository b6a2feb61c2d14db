"""The world and the scripts: catalogue, scenarios, stage, mock cloud and the engine that plays them."""
