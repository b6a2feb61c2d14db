"""From roles to routes: model, decision, analysis."""
