"""Pictures of a report: the boundary map, the neighbourhood of a site, the page, graphs for Model Explorer."""
